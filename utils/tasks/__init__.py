"""The Task protocol and its three implementations: GLUE, SQuAD and MLM."""
