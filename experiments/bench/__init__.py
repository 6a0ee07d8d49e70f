"""What a posterior costs: time and memory of training, drawing and predicting, beside PEFT's own adapters."""
