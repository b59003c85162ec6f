"""The formulations of the operator, one file each."""
