"""Where people stop gradients: an example a use, with the check that proves it; `test_table` says which is where."""
