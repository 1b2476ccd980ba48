# shellcheck shell=bash
# Functions that scripts/deploy and scripts/teardown share. Both source this file.

program=${0##*/}

say() {
	printf '%s: %s\n' "$program" "$*" >&2
}

# Prints a message, and a hint if there is one, and exits.
die() {
	printf 'scripts/%s: %s\n' "$program" "$1" >&2
	(($# == 1)) || printf 'hint: %s\n' "$2" >&2
	exit 1
}

# As die, for a wrong command line.
misused() {
	printf 'scripts/%s: %s\nhint: %s\n' "$program" "$1" "${2:-run scripts/$program --help}" >&2
	exit 2
}

# The AWS CLI has several exit codes for failed calls, from 3 up. Here they become 1.
finish() {
	local code=$?
	rm -rf "$work"
	((code < 3)) || exit 1
}

# Checks the programs, finds the region, and makes the folder $work, which is removed at the end.
prepare() {
	command -v aws >/dev/null || die "the AWS CLI (aws) is missing" "install it, or add it to PATH"
	command -v python3 >/dev/null || die "python3 is missing" "install it, or add it to PATH"
	# Version 1 of the CLI reads only AWS_DEFAULT_REGION. Version 2 uses a pager unless AWS_PAGER is empty.
	region=${AWS_REGION:-${AWS_DEFAULT_REGION:-$(aws configure get region || true)}}
	[[ -n $region ]] || die "no region is set" "set AWS_REGION, or run aws configure"
	export AWS_REGION=$region AWS_DEFAULT_REGION=$region AWS_PAGER=''
	work=$(mktemp -d)
	trap finish EXIT
}

# Sets $account and $partition.
find_account() {
	local identity
	identity=$(aws sts get-caller-identity --query '[Account,Arn]' --output text) ||
		die "the AWS credentials are missing or do not work" "run aws configure, or log in again"
	account=${identity%%[[:space:]]*}
	partition=${identity#*[[:space:]]arn:}
	partition=${partition%%:*}
}

# Prints an output or a parameter of the stack in $work/stack.json. Prints nothing if there is none.
value_of() {
	python3 - "$work/stack.json" "$1" <<'PYTHON'
import json
import sys

with open(sys.argv[1], encoding="utf-8") as file:
    stack = json.load(file)["Stacks"][0]
values = {entry["ParameterKey"]: entry.get("ParameterValue", "") for entry in stack.get("Parameters", [])}
values |= {entry["OutputKey"]: entry["OutputValue"] for entry in stack.get("Outputs", [])}
print(values.get(sys.argv[2], ""))
PYTHON
}

# Returns whether a resource exists, by the command that describes it. The output is in $work/there. Any other failure
# stops the script.
is_there() {
	if "$@" >"$work/there" 2>"$work/error"; then
		return 0
	fi
	grep -Eq 'does not exist|NotFound|Not Found|NoSuchBucket|\(404\)' "$work/error" && return 1
	die "$1 $2 $3 failed: $(<"$work/error")"
}

# Prints the stack's status. Prints nothing if there is no stack.
stack_status() {
	if is_there aws cloudformation describe-stacks --stack-name "$stack" \
		--query 'Stacks[0].StackStatus' --output text; then
		cat "$work/there"
	fi
}

# Waits until the stack's operation is complete, at most an hour. The status is in $status.
wait_for_stack() {
	local pause=1 end=$((SECONDS + 3600))
	while
		status=$(stack_status) || exit 1
		[[ $status == *_IN_PROGRESS ]]
	do
		((SECONDS < end)) ||
			die "the stack $stack is still $status after an hour" "check the events of the stack, then run this again"
		sleep "$pause"
		pause=5
	done
}

# Returns whether a table or a bucket has the tag of lighthpc's stacks. A name alone does not prove ownership.
bears_mark() {
	local tag
	case $1 in
	table)
		is_there aws dynamodb describe-table --table-name "$2" || return 1
		is_there aws dynamodb list-tags-of-resource --output text --query "Tags[?Key=='lighthpc'].Value" \
			--resource-arn "arn:$partition:dynamodb:$region:$account:table/$2" || return 1
		;;
	bucket)
		is_there aws s3api get-bucket-tagging --output text --query "TagSet[?Key=='lighthpc'].Value" \
			--bucket "$2" --expected-bucket-owner "$account" || return 1
		;;
	esac
	tag=$(<"$work/there")
	[[ -n $tag && $tag != None ]]
}

# Stops the script if the stack is not lighthpc's. In every version, the template's description begins with our name.
refuse_other_stack() {
	local description
	description=$(aws cloudformation describe-stacks --stack-name "$stack" --output text \
		--query 'Stacks[0].Description')
	[[ $description == lighthpc:* ]] ||
		die "the stack $stack is not lighthpc's, so it is not changed (its description: $description)" "check --stack"
}
