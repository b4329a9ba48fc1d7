# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash
#
# bash completion for hardsplicectl(1). Install as
# /usr/share/bash-completion/completions/hardsplicectl.

_hardsplicectl() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} word words='' i
    COMPREPLY=()
    # From here on made by tools/generate.py: ctl bash, options
    local valued='--socket --interval --listen' files='--socket'
    # As far as here.

    # The command and its action, without options and their values.
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        [[ " $valued " == *" ${COMP_WORDS[i - 1]} "* ]] && continue
        [[ $word == -* ]] || words+=" $word"
    done

    if [[ " $files " == *" $prev "* ]]; then
        compopt -o filenames 2>/dev/null
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
        return
    fi
    [[ " $valued " == *" $prev "* ]] && return
    local offered
    case $words in
        # From here on made by tools/generate.py: ctl bash, words
        '') offered='ports status flows metrics audit top exporter --version --socket --json --help' ;;
        ' ports') offered='list add remove --socket --json --help' ;;
        ' ports add') offered='-t -T -u -U --socket --json --help' ;;
        ' ports remove'*) offered='--reset --socket --json --help' ;;
        ' top') offered='--interval --socket --json --help' ;;
        ' exporter') offered='--listen --socket --json --help' ;;
        *) offered='--socket --json --help' ;;
        # As far as here.
    esac
    mapfile -t COMPREPLY < <(compgen -W "$offered" -- "$cur")
}

complete -F _hardsplicectl hardsplicectl
