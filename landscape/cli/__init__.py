"""The command line: its commands, its options, sweeps over configurations."""
