"""The commands of `xgr-stream catalog`, each imported when it is run."""
