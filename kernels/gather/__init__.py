"""Minibatches gathered from counts that are kept on the device."""
