"""``python -m converter`` is ``lensconv``."""

from converter.cli.main import main

main()
