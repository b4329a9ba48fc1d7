# SPDX-License-Identifier: GPL-2.0-or-later
#
# fish completion for hardsplicectl(1). Install as
# /usr/share/fish/vendor_completions.d/hardsplicectl.fish.

set -l seen __fish_seen_subcommand_from
set -l commands ports status flows metrics audit top exporter

complete -c hardsplicectl -f
complete -c hardsplicectl -n "not $seen $commands" -a "$commands"
complete -c hardsplicectl -n "$seen ports; and not $seen list add remove" -a 'list add remove'
complete -c hardsplicectl -l socket -r -F -d 'The control socket'
complete -c hardsplicectl -l json -d 'Answer in JSON'
complete -c hardsplicectl -s h -l help -d 'Show a summary'
complete -c hardsplicectl -n "not $seen $commands" -l version -d 'Show the version'
complete -c hardsplicectl -n "$seen add" -s t -d 'Host ports'
complete -c hardsplicectl -n "$seen add" -s T -d 'Namespace ports'
complete -c hardsplicectl -n "$seen remove" -l reset -d 'Reset their connections too'
complete -c hardsplicectl -n "$seen top" -l interval -x -d 'Seconds between two frames'
complete -c hardsplicectl -n "$seen exporter" -l listen -x -d 'Where to serve'
