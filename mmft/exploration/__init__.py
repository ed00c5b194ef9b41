"""How actions are tried out: probabilities over them, draws from these, and what changes by schedule."""
