"""Questions put to fitted language models, and how well scores tell wrong answers and questions without one."""
