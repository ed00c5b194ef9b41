"""From files and hub datasets to prompts: upright RGB pictures, chat messages, columns for rewards."""
