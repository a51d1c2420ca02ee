"""The pages as a reader uses them: every block runs, and the built site opens in a browser (`make docs-test`)."""
