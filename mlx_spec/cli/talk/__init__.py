"""``mlx-spec chat`` behind its options: conversation, answers, commands, keyboard."""
