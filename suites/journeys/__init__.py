"""What a person does in the first ten minutes, typed as they would type it: judged by exit status, screen and files."""
