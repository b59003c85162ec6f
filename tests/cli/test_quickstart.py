def test_wrong_usage(misused):
    says = "no task 'clasification'; there are classification, detection"
    misused('quickstart', 'clasification', says=says)
    misused('quickstart', '--cfg-options', 'max_epochs', says="KEY=VALUE, got 'max_epochs'")
