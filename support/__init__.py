"""Helpers of the commands: terminal, headers and names of image files, output files, devices and processes."""
