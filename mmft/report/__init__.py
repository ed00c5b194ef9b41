"""What a finished run is shown as: summary, before/after samples, curves and the model card."""
