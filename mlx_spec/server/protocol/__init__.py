"""What HTTP clients say and hear: OpenAI's and Anthropic's JSON to and from our own words.

Pure: no sockets, no framework, no work of the device. A dialect is a file (``dialect.Dialect``);
all of them read a request into one ``Asked`` and write results, streams and errors of it.
"""
