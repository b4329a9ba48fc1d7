# SPDX-License-Identifier: GPL-2.0-or-later
#
# fish completion for hardsplice(1). Install as
# /usr/share/fish/vendor_completions.d/hardsplice.fish.

# COMMAND and its arguments, as far as they are typed; false while there is none.
function __hardsplice_command
    set -l tokens (commandline -opc) (commandline -ct)
    set -e tokens[1]
    set -l options
    # From here on made by tools/generate.py: fish, as argparse has them
    set -a options t/tcp-ports=+ T/tcp-ns=+ 4/ipv4-only 6/ipv6-only
    set -a options netns= userns= netns-only map-auto no-netns-quit
    set -a options f/foreground P/pid= control= control-from-namespace metrics= ready-fd= runas= workers= drain= idle-timeout=
    set -a options sandbox= audit audit-json
    set -a options q/quiet d/debug trace l/log-file= log-size= log-format= log-flows
    set -a options u/udp-ports=+ U/udp-ns=+ splice-only host-lo-to-ns-lo h/help version
    # As far as here.
    argparse --stop-nonopt $options -- $tokens 2>/dev/null
    and test -n "$argv"
    and not string match -qr -- '^-' $argv[1]
    and string join0 -- $argv
end

function __hardsplice_complete_command
    set -l command (__hardsplice_command | string split0)
    __fish_complete_subcommand --commandline $command
    if test (count $command) -le 1
        __fish_complete_pids
    end
end

function __hardsplice_options
    not __hardsplice_command >/dev/null
end

function __hardsplice_netns
    path basename /run/netns/* 2>/dev/null
    __fish_complete_path (commandline -ct)
end

complete -c hardsplice -x -a '(__hardsplice_complete_command)'

set -l option complete -c hardsplice -n __hardsplice_options
# From here on made by tools/generate.py: fish
$option -s t -l tcp-ports -x -a 'none all auto' -d 'host ports, to the namespace'
$option -s T -l tcp-ns -x -a 'none all auto' -d 'namespace ports, to the host'
$option -s 4 -l ipv4-only -d 'use IPv4 only'
$option -s 6 -l ipv6-only -d 'use IPv6 only'
$option -l netns -x -a '(__hardsplice_netns)' -d 'join it; NAME is /run/netns/NAME'
$option -l userns -r -F -d 'the user namespace that owns it'
$option -l netns-only -d 'neither create nor join a user namespace'
$option -l map-auto -d 'COMMAND has its user\'s subordinate ids'
$option -l no-netns-quit -d 'outlive the namespace'
$option -s f -l foreground -d 'stay there (COMMAND always does)'
$option -s P -l pid -r -F -d 'write the PID to FILE'
$option -l control -r -F -d 'serve hardsplicectl and the like here'
$option -l control-from-namespace -d 'and to those in the namespace, for its own ports'
$option -l metrics -r -F -d 'serve everybody /metrics here, and no more'
$option -l ready-fd -x -d 'write to descriptor N when ready'
$option -l runas -x -a '(__fish_complete_users)' -d 'as root: change to this user'
$option -l workers -x -a 'auto 1 2 4 8' -d 'relays a direction (default 1); auto: one a CPU'
$option -l drain -x -a '10 60 600' -d 'at the end, let connections finish first'
$option -l idle-timeout -x -a '10 60 600' -d 'reset connections in which nothing moves'
$option -l sandbox -x -a 'best-effort strict' -d 'best-effort (default), or strict: all or nothing'
$option -l audit -d 'when ready, show what each process may do'
$option -l audit-json -d 'the same as JSON (or --audit=json)'
$option -s q -l quiet -d 'errors only'
$option -s d -l debug -d 'say what is done'
$option -l trace -d 'and every connection'
$option -s l -l log-file -r -F -d 'log to a file'
$option -l log-size -x -d 'its largest size (default 1M)'
$option -l log-format -x -a 'text json' -d 'text (default), or json'
$option -l log-flows -d 'a line for each flow that ends'
$option -s u -l udp-ports -x -a 'none' -d 'none is accepted; no UDP here'
$option -s U -l udp-ns -x -a 'none' -d 'none is accepted; no UDP here'
$option -l splice-only -d 'accepted; always so'
$option -l host-lo-to-ns-lo -d 'accepted; always so'
$option -s h -l help -d 'show this'
$option -l version -d 'show it'
# As far as here.
