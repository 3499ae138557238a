"""The experiments as YAML files, imported as `ctrnn_experiments`; see `ctrnn reproduce --list`."""
