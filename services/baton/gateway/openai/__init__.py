"""OpenAI's endpoints: schemas, chat completions, completions, models, error bodies."""
