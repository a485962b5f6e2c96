"""ZINB, negative-binomial and Poisson likelihoods."""
