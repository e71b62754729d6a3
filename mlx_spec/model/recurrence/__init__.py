"""Verification of several tokens in one pass for models with a recurrent state.

A state that several tokens were folded into cannot be cut back. But what a recurrence reads of each
token is small and known after the pass, so that ``commit(kept)`` runs the recurrence again, and
nothing else of the model, from the state before the pass::

    pass    x0 x1 x2 x3 --> projections --> convolution, recurrence --> outputs --> ... --> logits
                            |  noted        ^ state before: held
    commit                  '-------------> convolution, recurrence --> state after ``kept`` tokens

``trace`` finds the modules that write states (mixers), ``probe`` finds by numbers how each class of
them can be run again, ``binding`` lets them note, ``replay`` runs them. No model is known by name.
"""
