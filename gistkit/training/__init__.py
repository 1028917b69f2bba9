"""Training a gist model: settings, arguments, objectives, trainer, job."""
