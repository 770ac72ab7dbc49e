"""Lists of commands, their runners, and the tables and figures of the paper."""
