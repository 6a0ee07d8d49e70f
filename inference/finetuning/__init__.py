"""Methods of fine-tuning without a posterior: LoRA, DoRA, AdaLoRA, bottleneck adapters, everything."""
