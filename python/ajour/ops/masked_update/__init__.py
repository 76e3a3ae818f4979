"""masked_adamw and masked_sgd: one optimizer step over many parameters, masked-out weights held at +0.0."""
