"""The `xgr-stream` command line: one module per subcommand, imported when it is run."""
