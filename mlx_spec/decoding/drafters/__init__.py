"""Where drafts come from: each drafter proposes, none is known to the decoder by kind."""
