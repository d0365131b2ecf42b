"""What the wrappers and readers need beside ``net.py``, in one package so that no user's module is named alike.

hyper_parameters.py checks a config and builds the network, tasks.py has the kinds of task, training.py optimizers and
schedules, array_files.py reads arrays from untrusted files, output_files.py writes a file whole or not at all.
"""
