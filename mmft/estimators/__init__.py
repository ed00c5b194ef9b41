"""What a step was worth: rewards per token, returns and advantages, as pure functions of tensors."""
