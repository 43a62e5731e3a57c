"""What the commands need besides fusion: the terminal, image files and their names, outputs, processes."""
