"""Pictures, videos and questions on their way to a model."""
