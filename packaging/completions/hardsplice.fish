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
    set -a options t/tcp-ports=+ T/tcp-ns=+ u/udp-ports=+ U/udp-ns=+ 4/ipv4-only 6/ipv6-only
    set -a options netns= userns= netns-only map-auto no-netns-quit
    set -a options f/foreground P/pid= control= control-from-namespace metrics= ready-fd= exit-fd= runas= workers= drain= idle-timeout= udp-timeout= udp-stream-timeout= udp-flows=
    set -a options sandbox= audit audit-json
    set -a options q/quiet d/debug trace l/log-file= log-size= log-format= log-flows
    set -a options splice-only host-lo-to-ns-lo h/help version
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
$option -s t -l tcp-ports -x -a 'none all auto' -d 'forward host ports to the namespace'
$option -s T -l tcp-ns -x -a 'none all auto' -d 'forward namespace ports to the host'
$option -s u -l udp-ports -x -a 'none all auto' -d 'the same as -t, of UDP'
$option -s U -l udp-ns -x -a 'none all auto' -d 'the same as -T, of UDP'
$option -s 4 -l ipv4-only -d 'use IPv4 only'
$option -s 6 -l ipv6-only -d 'use IPv6 only'
$option -l netns -x -a '(__hardsplice_netns)' -d 'serve it; NAME means /run/netns/NAME'
$option -l userns -r -F -d 'the user namespace that owns it'
$option -l netns-only -d 'neither create nor join a user namespace'
$option -l map-auto -d 'give COMMAND its user\'s subordinate IDs'
$option -l no-netns-quit -d 'keep running when the namespace is gone'
$option -s f -l foreground -d 'stay in the foreground (always with COMMAND)'
$option -s P -l pid -r -F -d 'write the process ID to FILE'
$option -l control -r -F -d 'serve hardsplicectl and other clients at PATH'
$option -l control-from-namespace -d 'accept clients in the namespace there, too'
$option -l metrics -r -F -d 'serve only /metrics at PATH, to every user'
$option -l ready-fd -x -d 'write to descriptor N when ready'
$option -l exit-fd -x -d 'end when descriptor N is at its end of file'
$option -l runas -x -a '(__fish_complete_users)' -d 'if started as root: change to this user'
$option -l workers -x -a 'auto 1 2 4 8' -d 'relays per direction (default 1; auto: one a CPU)'
$option -l drain -x -a '10 60 600' -d 'at the end, let connections finish first'
$option -l idle-timeout -x -a '10 60 600' -d 'reset connections in which nothing moves'
$option -l udp-timeout -x -a '10 60 600' -d 'end UDP flows without an answer (default 30)'
$option -l udp-stream-timeout -x -a '10 60 600' -d 'end idle UDP flows with one (default 120)'
$option -l udp-flows -x -a '1024 4096 16384' -d 'UDP flows of a relay at the most (default 4096)'
$option -l sandbox -x -a 'best-effort strict' -d 'best-effort (default), or strict: every layer'
$option -l audit -d 'when ready, show what each process may do'
$option -l audit-json -d 'the same as JSON (or --audit=json)'
$option -s q -l quiet -d 'report errors only'
$option -s d -l debug -d 'also report the steps of the start'
$option -l trace -d 'also report every connection'
$option -s l -l log-file -r -F -d 'write messages to PATH'
$option -l log-size -x -d 'largest size of the log file (default 1M)'
$option -l log-format -x -a 'text json' -d 'text (default) or json'
$option -l log-flows -d 'log a line for each flow that ends'
$option -l splice-only -d 'accepted; always the case'
$option -l host-lo-to-ns-lo -d 'accepted; always the case'
$option -s h -l help -d 'show this help'
$option -l version -d 'show the version'
# As far as here.
