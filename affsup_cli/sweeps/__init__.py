"""Many runs: which are lacking (`plan`), in what order (`schedule`), and the processes that do them (`workers`)."""
