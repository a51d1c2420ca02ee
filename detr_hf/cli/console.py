"""What the verbs share in talking to a terminal."""


def quiet_loading() -> None:
    """Keeps transformers' progress bars for loading and saving weights out of the output; its warnings stay."""
    from transformers.utils import logging

    logging.disable_progress_bar()
