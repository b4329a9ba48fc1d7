# SPDX-License-Identifier: GPL-2.0-or-later
#
# fish completion for hardsplice(1). Install as
# /usr/share/fish/vendor_completions.d/hardsplice.fish.

# COMMAND and its arguments, as far as they are typed; false while there is none.
function __hardsplice_command
    set -l tokens (commandline -opc) (commandline -ct)
    set -e tokens[1]
    set -l options t/tcp-ports=+ T/tcp-ns=+ 4/ipv4-only 6/ipv6-only
    set -a options netns= userns= netns-only map-auto no-netns-quit
    set -a options f/foreground P/pid= control= control-from-namespace metrics= ready-fd= runas= workers= drain= idle-timeout=
    set -a options sandbox= audit audit-json
    set -a options q/quiet d/debug trace l/log-file= log-size= log-format= log-flows
    set -a options u/udp-ports= U/udp-ns= splice-only host-lo-to-ns-lo h/help version
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
$option -s t -l tcp-ports -x -a 'none all auto' -d 'Host ports, to the namespace'
$option -s T -l tcp-ns -x -a 'none all auto' -d 'Namespace ports, to the host'
$option -s 4 -l ipv4-only -d 'Use IPv4 only'
$option -s 6 -l ipv6-only -d 'Use IPv6 only'
$option -l netns -x -a '(__hardsplice_netns)' -d 'Join a network namespace'
$option -l userns -r -F -d 'The user namespace that owns it'
$option -l netns-only -d 'Neither create nor join a user namespace'
$option -l map-auto -d 'COMMAND has its user\'s subordinate ids'
$option -l no-netns-quit -d 'Outlive the namespace'
$option -s f -l foreground -d 'Stay in the foreground'
$option -s P -l pid -r -F -d 'Write the PID to a file'
$option -l control -r -F -d 'Serve hardsplicectl and the like here'
$option -l control-from-namespace -d 'And to those in the namespace'
$option -l metrics -r -F -d 'Serve everybody /metrics here'
$option -l ready-fd -x -d 'Write to a descriptor when ready'
$option -l runas -x -a '(__fish_complete_users)' -d 'As root, change to this user'
$option -l workers -x -a 'auto 1 2 4 8' -d 'Relays a direction'
$option -l drain -x -a '10 60 600' -d 'At the end, let connections finish first'
$option -l idle-timeout -x -a '10 60 600' -d 'Reset connections in which nothing moves'
$option -l sandbox -x -a 'best-effort strict' -d 'Where the kernel lacks a layer'
$option -l audit -d 'When ready, show what each process may do'
$option -l audit-json -d 'The same as JSON'
$option -s q -l quiet -d 'Errors only'
$option -s d -l debug -d 'Say what is done'
$option -l trace -d 'And every connection'
$option -s l -l log-file -r -F -d 'Log to a file'
$option -l log-size -x -d 'Largest size of the log'
$option -l log-format -x -a 'text json' -d 'Form of the lines'
$option -l log-flows -d 'A line for each flow that ends'
$option -s u -l udp-ports -x -a none -d 'Accepted, there is no UDP'
$option -s U -l udp-ns -x -a none -d 'Accepted, there is no UDP'
$option -l splice-only -d 'Accepted, always so'
$option -l host-lo-to-ns-lo -d 'Accepted, always so'
$option -s h -l help -d 'Show a summary of the options'
$option -l version -d 'Show the version'
