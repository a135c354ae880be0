"""What goes wrong where long work is done, tried at scale through the command line."""
