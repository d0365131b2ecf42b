"""Tables of any size: reader.py gives examples, vocabulary.py says what values mean, files.py reads blocks of rows."""
