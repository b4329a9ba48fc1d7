# SPDX-License-Identifier: GPL-2.0-or-later
#
# fish completion for hardsplicectl(1). Install as
# /usr/share/fish/vendor_completions.d/hardsplicectl.fish.

complete -c hardsplicectl -f
# From here on made by tools/generate.py: ctl fish
complete -c hardsplicectl -n "not __fish_seen_subcommand_from ports status flows metrics audit top exporter" -a "ports status flows metrics audit top exporter"
complete -c hardsplicectl -n "__fish_seen_subcommand_from ports; and not __fish_seen_subcommand_from list add remove" -a 'list add remove'
complete -c hardsplicectl -l socket -r -F -d 'hardsplice\'s control socket'
complete -c hardsplicectl -l json -d 'answer in JSON'
complete -c hardsplicectl -s h -l help -d 'show this'
complete -c hardsplicectl -n "not __fish_seen_subcommand_from ports status flows metrics audit top exporter" -l version -d 'show it'
complete -c hardsplicectl -n "__fish_seen_subcommand_from add" -s t -d 'forward host ports to the namespace (the default)'
complete -c hardsplicectl -n "__fish_seen_subcommand_from add" -s T -d 'forward namespace ports to the host'
complete -c hardsplicectl -n "__fish_seen_subcommand_from add" -s u -d 'the same as -t, of UDP'
complete -c hardsplicectl -n "__fish_seen_subcommand_from add" -s U -d 'the same as -T, of UDP'
complete -c hardsplicectl -n "__fish_seen_subcommand_from remove" -l reset -d 'reset their connections, too'
complete -c hardsplicectl -n "__fish_seen_subcommand_from top" -l interval -x -d 'interval between two frames (default 1)'
complete -c hardsplicectl -n "__fish_seen_subcommand_from exporter" -l listen -x -d 'where to listen'
# As far as here.
