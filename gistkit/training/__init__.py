"""Teaching a model to gist: arguments, trainer, job."""
