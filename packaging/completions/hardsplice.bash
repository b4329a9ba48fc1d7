# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash
#
# bash completion for hardsplice(1). Install as /usr/share/bash-completion/completions/hardsplice.
# Works without the bash-completion package; with it, COMMAND's own completion is used as well.

# What is offered for a value: each of these completes the caller's `cur`.
_hardsplice_words() {
    mapfile -t COMPREPLY < <(compgen -W "$1" -- "$cur")
}

_hardsplice_file() {
    compopt -o filenames 2>/dev/null
    mapfile -t COMPREPLY < <(compgen -f -- "$cur")
}

_hardsplice_netns() {
    compopt -o filenames 2>/dev/null
    mapfile -t COMPREPLY < <(
        # Whoever made a namespace chose its name; -W would run what is in it.
        [[ $cur == */* ]] || (cd /run/netns 2>/dev/null && compgen -f -- "$cur")
        compgen -f -- "$cur"
    )
}

_hardsplice_user() {
    mapfile -t COMPREPLY < <(compgen -u -- "$cur")
}

_hardsplice() {
    local cur=${COMP_WORDS[COMP_CWORD]} word pending='' i
    COMPREPLY=()
    # From here on made by tools/generate.py: bash, options
    local flags=46fqdh valued=tTuUPl all='
        -t --tcp-ports -T --tcp-ns -u --udp-ports -U --udp-ns -4 --ipv4-only -6 --ipv6-only
        --netns --userns --netns-only --map-auto --no-netns-quit
        -f --foreground -P --pid --control --control-from-namespace --metrics --ready-fd --exit-fd --runas --workers --drain --idle-timeout --udp-timeout --udp-stream-timeout --udp-flows
        --sandbox --audit --audit-json
        -q --quiet -d --debug --trace -l --log-file --log-size --log-format --log-flows
        --splice-only --host-lo-to-ns-lo -h --help --version
    '
    # As far as here.

    # Where do the options end? `pending` is the option whose value the current word is. bash
    # splits --name=value into three words, of which "=" is one.
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if [[ -n $pending ]]; then
            [[ $word == '=' && ${COMP_WORDS[i - 1]} == --* ]] || pending=''
            continue
        fi
        case $word in
            --)
                i=$((i + 1))
                break
                ;;
            # From here on made by tools/generate.py: bash, with values
            --tcp-ports | --tcp-ns | --udp-ports | --udp-ns | --netns | --userns | \
            --pid | --control | --metrics | --ready-fd | --exit-fd | --runas | \
            --workers | --drain | --idle-timeout | --udp-timeout | --udp-stream-timeout | --udp-flows | \
            --sandbox | --log-file | --log-size | --log-format)
                pending=$word
                ;;
            # As far as here.
            --*) ;;
            -*)
                # One or more flags, and maybe an option whose value is the next word.
                [[ $word =~ ^-[$flags]*([$valued])$ ]] && pending=-${BASH_REMATCH[1]}
                ;;
            *) break ;;
        esac
    done

    if [[ -z $pending ]] && ((i < COMP_CWORD)); then
        if declare -F _command_offset >/dev/null; then
            _command_offset "$i"
        else
            compopt -o filenames 2>/dev/null
            mapfile -t COMPREPLY < <(compgen -f -- "$cur")
        fi
        return
    fi
    [[ $pending == --* && $cur == '=' ]] && cur=''

    case $pending in
        # From here on made by tools/generate.py: bash, values
        -t | --tcp-ports | -T | --tcp-ns | -u | --udp-ports | \
        -U | --udp-ns)
            _hardsplice_words 'none all auto'
            ;;
        --netns)
            _hardsplice_netns
            ;;
        --userns | -P | --pid | --control | --metrics | -l | \
        --log-file)
            _hardsplice_file
            ;;
        --ready-fd | --exit-fd)
            :
            ;;
        --runas)
            _hardsplice_user
            ;;
        --workers)
            _hardsplice_words 'auto 1 2 4 8'
            ;;
        --drain | --idle-timeout | --udp-timeout | --udp-stream-timeout)
            _hardsplice_words '10 60 600'
            ;;
        --udp-flows)
            _hardsplice_words '1024 4096 16384'
            ;;
        --sandbox)
            _hardsplice_words 'best-effort strict'
            ;;
        --log-size)
            :
            ;;
        --log-format)
            _hardsplice_words 'text json'
            ;;
        # As far as here.
        *)
            if [[ $cur == -* ]] && ((i == COMP_CWORD)) && [[ ${COMP_WORDS[i - 1]} != -- ]]; then
                _hardsplice_words "$all"
            elif [[ $cur =~ ^[0-9]+$ ]]; then
                mapfile -t COMPREPLY < <(cd /proc && compgen -G "$cur*")
            else
                mapfile -t COMPREPLY < <(compgen -c -- "$cur")
            fi
            ;;
    esac
}

complete -F _hardsplice hardsplice
