"""The command line of ctrnn-assembly, imported as `ctrnn_cli`."""
