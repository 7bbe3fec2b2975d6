"""`baton up`: the whole system on one machine, every service a supervised process on loopback.

settings     what can be asked for
runtime_dir  private folder with sockets and the status file
plan         settings -> one child (command, address) per service
child        one process: start, read its output, end its group
supervisor   keeps all children running, with back-off; gives up where starting again cannot help
output       one prefixed log, progress while models load
main         the command
"""
