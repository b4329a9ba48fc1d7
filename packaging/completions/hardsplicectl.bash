# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash
#
# bash completion for hardsplicectl(1). Install as
# /usr/share/bash-completion/completions/hardsplicectl.

_hardsplicectl() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} word words='' i
    COMPREPLY=()

    # The command and its action, without options and their values.
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        case ${COMP_WORDS[i - 1]} in
            --socket | --interval | --listen) continue ;;
        esac
        [[ $word == -* ]] || words+=" $word"
    done

    case $prev in
        --socket)
            compopt -o filenames 2>/dev/null
            mapfile -t COMPREPLY < <(compgen -f -- "$cur")
            return
            ;;
        --interval | --listen) return ;;
    esac
    local common='--socket --json --help' offered
    case $words in
        '') offered="ports status flows metrics audit top exporter --version $common" ;;
        ' ports') offered="list add remove $common" ;;
        ' ports add') offered="-t -T $common" ;;
        ' ports remove'*) offered="--reset $common" ;;
        ' top') offered="--interval $common" ;;
        ' exporter') offered="--listen $common" ;;
        *) offered=$common ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$offered" -- "$cur")
}

complete -F _hardsplicectl hardsplicectl
