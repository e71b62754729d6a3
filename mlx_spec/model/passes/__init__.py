"""How a pass goes through a model: the whole rectangle at once where the model's code allows it.

``form`` says which ways there are, one file each is one of them, ``make`` picks.
"""
