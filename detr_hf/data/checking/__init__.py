"""What is wrong with a data set, and where: `check`, its report, and pictures of its boxes."""
