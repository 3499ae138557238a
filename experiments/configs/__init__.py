"""The experiments as YAML files, imported as `ctrnn_experiments`; `ctrnn reproduce --list` shows them."""
