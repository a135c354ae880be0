"""What is trained beside a frozen base: which modules, how it is put in, and how it lives in a folder."""
