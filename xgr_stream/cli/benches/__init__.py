"""The subcommands of `xgr-stream bench`, one module each, and what they share."""
