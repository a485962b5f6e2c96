"""``python -m fastvae`` is the ``fastvae`` command."""

from .cli.app import main

if __name__ == "__main__":
    main()
