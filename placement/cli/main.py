"""The ``fabric-plan`` command."""


def main() -> int:
    """Run a command; the process's exit status."""
    raise SystemExit("fabric-plan has no commands yet")
